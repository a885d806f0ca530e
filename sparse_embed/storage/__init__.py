"""Files of a store: store.py has the protocol, frame.py the journal's format, segments.py how it is
read, journal.py how it is written."""
