"""The methods without a model that generate visits: what each can make.

The rules, which parse with the standard library alone, and the step that runs a method both read it.
"""

NAIVE = {  # method -> modes
    "prevalence": ("synthesize", "reconstruct"),
    "markov": ("synthesize", "reconstruct"),
    "copy": ("synthesize",),
    "echo": ("reconstruct",),
}
