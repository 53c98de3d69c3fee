"""An ensemble in one folder that predicts without network, torch or pandas."""
