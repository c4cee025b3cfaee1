"""The rules language: YAML files → families → a model taken apart by component. `../../rules` holds the families."""
