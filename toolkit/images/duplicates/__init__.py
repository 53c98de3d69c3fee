"""Pictures that are there twice: hashes bring pairs near each other, their pixels prove them."""
