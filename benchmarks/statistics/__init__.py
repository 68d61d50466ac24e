"""How often the package's intervals hold the truth, and how often its tests see an effect where none is."""
