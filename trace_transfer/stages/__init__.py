"""The stages, one module each, in the order of the data.

`score`: opening, differencing, scoring, selection. `map`: opening, probing, matching, translation, mapping.
"""
