"""What the microscope does to an image, from the columns of the particle table.

- ``ctf``: the contrast transfer function; ``aberrations``: its terms of higher order
"""
