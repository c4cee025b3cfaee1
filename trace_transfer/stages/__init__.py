"""The stages, one module each, in the order of the data: opening, probing, matching, translation, mapping."""
