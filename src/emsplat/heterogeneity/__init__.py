"""The job that looks for heterogeneity: a latent for every particle, maps of states, Gaussians that follow the latents.

- ``run``: the whole job; ``work``: its data and settings; ``rounds``: from latents to a decoder; ``result``: its result
- ``kept``: finished stages as checkpoints, and stages that the ranks divide
- ``observations``: the data of the images below a limit of frequency; ``slices``: slices of many volumes at once
- ``subspace``: a linear subspace of maps; ``posterior``: its latents, with contrast and pose errors integrated out
- ``agreement``: the number of components, decided by the other half's images; ``alignment``: one frame for both
- ``bins``: statistics of neighbourhoods; ``decoder``: Gaussians as functions of latents; ``fit_decoder``: their fit
- ``gtm``: posteriors over points of latent space under the decoder; ``point_maps``: its maps at these points
- ``latents``, ``states``, ``trajectories``: the results; ``protection``: what latents must not encode
"""
