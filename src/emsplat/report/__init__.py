"""The report: a run folder → one HTML file that can be read anywhere, without a network.

- ``volumes``, ``picture``, ``charts``, ``plots``, ``landscape``: maps, surfaces, curves and latents for a page
- ``sections``: the parts of the page as values; ``templates``, ``assets``: how they look; ``page``: the file
- ``heterogeneity``: the page of a search for heterogeneity
"""
