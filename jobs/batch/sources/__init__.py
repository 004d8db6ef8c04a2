"""Reading for a batch run: a table's files cut into pieces, each piece a stream of chunks, each row once.

Whatever is wrong with a file as a whole stops the run and names it; whatever is wrong with a row that could
not even be read refuses that row. What a value may be is the signature's business.
"""

from jobs.batch.sources.cuts import cut
from jobs.batch.sources.pieces import Chunk, Piece, Reading, Refused, is_text
from jobs.batch.sources.reading import read, read_pieces
from jobs.batch.sources.survey import survey

__all__ = [
    "Chunk",
    "Piece",
    "Reading",
    "Refused",
    "cut",
    "is_text",
    "read",
    "read_pieces",
    "survey",
]
