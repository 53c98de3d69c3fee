"""Text: CSV and tables of other forms, HTML, and what is printed for people."""
