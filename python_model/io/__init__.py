"""Files that are read and written with care: what a broken one says, who owns a directory."""
