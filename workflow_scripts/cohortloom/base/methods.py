"""The naive methods: the modes of each, and which of them score every code.

Used by the rules, which parse with the standard library alone, and by the steps.
"""

NAIVE = {  # method -> modes
    "prevalence": ("synthesize", "reconstruct"),
    "markov": ("synthesize", "reconstruct"),
    "copy": ("synthesize",),
    "echo": ("reconstruct",),
    "linear": ("reconstruct",),
}
SCORING = ("prevalence", "linear")  # methods that give each hidden code a score, as a model does
FITTED = "linear"  # the method whose settings are chosen on validation visits
