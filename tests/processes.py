"""Processes that tests start."""

from __future__ import annotations

PATIENCE = 300.0  # seconds that a test waits for one to end; nothing is judged by how long it takes on a busy machine
