"""The model of an image: projection → shift → CTF → image, and its noise.

- ``forward``: the images that a microscope would record; ``likelihood``: the likelihood of those that it did record
- ``ctf``: the contrast transfer function; ``aberrations``: its terms of higher order
- ``noise``: radial noise spectra, and whitening by them
"""
