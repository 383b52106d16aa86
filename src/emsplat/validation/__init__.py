"""How far a map can be believed.

- ``correlation``: correlations between maps, shell by shell, and how well each is known
- ``validate``: the family of FSC curves and the honest correlation with the truth
- ``local_resolution``: the same in windows
"""
