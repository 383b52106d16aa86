"""The viewer: a finished run, or a fit in progress, as splats and surface in a browser. It needs ``emsplat[viewer]``.

- ``content``: a run as the viewer shows it; ``fields``: values that vary in space, and planes that cut them
- ``splats``, ``surface``, ``atoms``: arrays to draw; ``colours``: ramps and legends; ``glb``: meshes as bytes
- ``server``: addresses and ports; ``scene``: what the browsers show; ``controls``: the controls in the browser
- ``pictures``: screenshots and turntables
- ``latent``: a search for heterogeneity, with sliders for its latents
- ``view``: a finished run; ``live``: a fit in progress
"""
