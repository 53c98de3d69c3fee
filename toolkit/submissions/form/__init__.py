"""What a sample asks for: the formats, what each column holds, and the text of cells."""
