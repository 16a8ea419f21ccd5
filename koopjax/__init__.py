"""How much of a network is really nonlinear, and how small can it get?

A layer stack is a dynamical system in depth. koopjax lifts its activations with a dictionary of
observables, fits the linear map between the lifted states (the Koopman matrix, by extended dynamic
mode decomposition), measures how rich the dictionary has to be, puts the matrix in the layers'
place and compresses it. See `DESIGN` in the README for the notation.
"""

from koopjax import edmd as edmd, nn as nn, observables as observables, surgery as surgery

__version__ = "0.1.0"
