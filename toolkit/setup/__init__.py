"""Making a workspace: init, demo, doctor, data sets, shipped recipes."""
