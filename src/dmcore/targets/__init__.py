"""One file per dm target; the registry finds them by scanning this package."""
