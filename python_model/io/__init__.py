"""Safe reading and writing of files: errors of damaged files, atomic writes, ownership of directories."""
