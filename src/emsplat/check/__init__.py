"""`emsplat check`: does a particle file make sense? What it says, what its images look like, and whether they agree.

``facts`` what the table says; ``coverage`` its viewing directions; ``picks`` its micrographs; ``sample`` images of it;
``oddities`` those that are unlike the others;
``thon`` the CTF in their power spectra; ``inversion`` a small map of them; ``agreement`` what the poses explain of
images the map has not seen; ``readings`` what the table might have meant instead; ``findings`` verdicts and advice;
``gallery`` and ``figure`` the picture; ``run`` calls one after the other.
"""
