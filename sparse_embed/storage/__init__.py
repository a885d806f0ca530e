"""Files of a store: see store.py for the protocol, journal.py for the frame format."""
