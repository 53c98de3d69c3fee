"""From weights or other people's files to a proved export."""
