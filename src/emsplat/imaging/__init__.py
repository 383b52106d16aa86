"""The model of an image: projection → shift → CTF → image, and its noise.

- ``forward``: the images that a microscope would record; ``likelihood``: the likelihood of those that it did record
- ``noise``: radial noise spectra, and whitening by them
"""
