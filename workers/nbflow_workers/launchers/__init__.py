"""Launchers start worker processes and hand back where they are; `local` is built in, others are entry points."""
