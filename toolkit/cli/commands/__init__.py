"""The commands of `toolkit`, one file each, independent of each other."""
