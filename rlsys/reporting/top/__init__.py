"""The terminal view of a run (`rlsys top`): snapshot reads the run folder, app draws it (with textual, the extra `top`)."""
