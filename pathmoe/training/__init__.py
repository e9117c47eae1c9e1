"""Training on Lightning: optimizers, schedules, the module and its command line."""
