"""dmcore: Linux device-mapper in pure Python."""
