"""One file per target with a model; `dmcore.model.registry` finds them by the target's kernel name."""
