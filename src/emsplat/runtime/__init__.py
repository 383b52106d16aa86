"""The foundations of every long job: devices, threads, ranks, files, checkpoints, and messages to the user.

- ``devices``: the processor or graphics card that does the work; ``trial_gpu``: a first kernel on a graphics card
- ``threads``: the number of threads of all libraries; ``simd``: the innermost loops as vector instructions
- ``memory``: what is freed goes back to the system; ``ranks``: one job on many processes
- ``files``, ``folders``: files and folders that appear whole or not at all; ``tensors``: safetensors files
- ``checkpoint``: the states a job is resumed from; ``packing``: dataclasses as such states
- ``context``: what every stage of a job is given of all this
- ``reporting``: what a job reports; ``console``: how the terminal shows it; ``text_curve``: a curve in characters
- ``copied``: two processes for work in Python; ``stopwatch``: how much time each activity takes
"""
