"""How an image comes about: projection → shift → CTF → image, and its noise.

- ``forward``: the images a microscope would record; ``likelihood``: how likely those are that it did record
- ``ctf``: the contrast transfer function; ``aberrations``: its terms of higher order
- ``noise``: radial noise spectra, and whitening by them
"""
