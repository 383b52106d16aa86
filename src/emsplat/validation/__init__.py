"""How far a map can be trusted, and the map that follows from it.

- ``correlation``: correlations between maps, shell by shell, and how well each is known
- ``validate``: the family of FSC curves and the honest correlation with the truth
- ``bands``: what is compared within masks that end abruptly
- ``combination``: the map as the best combination of Gaussians and direct inversion in every shell
- ``uncertainty``: the standard error of the map at each voxel
- ``local_resolution``: the correlation with the truth in windows
- ``directions``: cells of directions that can vote; ``symmetry_test``: whether the images have a symmetry;
  ``ctf_test``: whether they have the CTFs that are not used
"""
