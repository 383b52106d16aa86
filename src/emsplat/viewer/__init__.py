"""The live viewer: a run folder, or a fit at work, as splats and surface in a browser. Needs ``emsplat[viewer]``.

- ``content``: what a run left, as it is shown; ``fields``: what varies in space, and planes that cut
- ``splats``, ``surface``, ``atoms``: arrays that can be drawn; ``colours``: ramps and legends; ``glb``: meshes as bytes
- ``server``: addresses and ports; ``scene``: what the browsers show; ``controls``: what they ask for; ``pictures``
- ``view``: a finished run; ``live``: a fit at work
"""
