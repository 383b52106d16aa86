"""`emsplat check`: does a particle file make sense?

- ``run``: all checks in turn; ``settings``: the options; ``findings``: verdicts, each with a line of advice
- ``facts``: what the table says; ``coverage``: its viewing directions; ``picks``: its positions on micrographs
- ``sample``: the images that are looked at; ``oddities``: those unlike the others
- ``thon``: the CTF in the power spectra of the images
- ``inversion``: a small map of them; ``agreement``: what the poses explain of images that this map has not seen
- ``readings``: what the table might have meant instead; ``symmetry``: whether the images have the symmetry
- ``gallery``, ``figure``: the picture; ``write``: the files
- ``compare``: `emsplat fsc`, two maps against each other
"""
