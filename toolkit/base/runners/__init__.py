"""Where jobs run: here, or in processes of their own."""
