"""The methods without a model that generate visits: what each can make, and which score every code.

The rules, which parse with the standard library alone, and the step that runs a method both read it.
"""

NAIVE = {  # method -> modes
    "prevalence": ("synthesize", "reconstruct"),
    "markov": ("synthesize", "reconstruct"),
    "copy": ("synthesize",),
    "echo": ("reconstruct",),
    "linear": ("reconstruct",),
}
SCORING = ("prevalence", "linear")  # they give each hidden code a score, as a model does
FITTED = "linear"  # its settings are chosen on validation visits
