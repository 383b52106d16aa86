"""The report: a run folder → one HTML file that can be looked at anywhere and asks nothing of the network.

- ``evidence``: what a run leaves for its report, beside maps and curves
- ``run``: what is found in a run folder
- ``volumes``, ``picture``, ``charts``: maps, surfaces and curves, small enough for a page
- ``sections``: the parts of the page as values; ``templates``, ``assets``: how they look; ``page``: the file
"""
