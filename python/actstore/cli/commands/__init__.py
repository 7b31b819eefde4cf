"""The commands, one module each; no command imports another."""
