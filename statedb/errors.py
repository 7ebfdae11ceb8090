# SPDX-License-Identifier: Apache-2.0
"""All errors of the package. Each misuse has its own class and names what was misused.

StateDBError
├── RegistrationError      a table, index or initializer is declared wrongly
│   ├── TableExists          the name is taken in this database
│   ├── UnknownTable         no table of that name, or a table of another database
│   ├── UnknownIndex         no such index in this table
│   └── InitializerExists    the initializer's name is pending already
├── TransactionError       a transaction is used wrongly
│   ├── TableNotLocked       a write to a table which the transaction does not hold
│   ├── TransactionClosed    use after commit or abort
│   ├── TransactionOpen      this thread holds a table and asks for it again
│   ├── TransactionForgotten dropped without commit or abort
│   └── ForeignTransaction   a transaction of another database, or older than the table
├── QueryError             a query cannot be answered
│   ├── NoParser             the index has no text parser
│   ├── BadKey               the text or value is no key of the index
│   └── NotSupported         the index cannot answer this kind of query
├── DuplicateKey           a unique index has the key for another object
├── IteratorClosed         a change iterator is used after close
├── RevisionGone           the revision is older than the history that is kept
├── InstanceMismatch       a revision of another database instance
├── OutsideError           what people, scripts and remote clients ask for
│   ├── UnknownColumn        no such column in this table
│   ├── BadFormat            an unknown output format, or columns for one that has none
│   ├── UnreadableObject     text that describes no object of the table's row type
│   ├── TableMismatch        `db/cmp`: the table is not as the file says
│   ├── CommandFailed        a `db` command found otherwise, or was used wrongly
│   └── RemoteError          a remote query got no answer
│       ├── Unreachable        nobody listens on the socket
│       ├── Refused            the server's answer is an error that has no class here
│       └── BrokenAnswer       the answer ended early, or is not what a database sends
└── InvariantBroken        STATEDB_VALIDATE=1 found a defect of this package
"""


class StateDBError(Exception):
    """Base of all errors of this package."""


class RegistrationError(StateDBError):
    """A table, index or initializer is declared wrongly."""


class TableExists(RegistrationError):
    """A table of this name is registered already."""


class UnknownTable(RegistrationError, LookupError):
    """The database has no such table."""


class UnknownIndex(RegistrationError, LookupError):
    """The table has no such index."""


class InitializerExists(RegistrationError):
    """An initializer of this name is pending already."""


class TransactionError(StateDBError):
    """A transaction is used wrongly."""


class TableNotLocked(TransactionError):
    """A write to a table which the transaction was not opened for."""


class TransactionClosed(TransactionError):
    """The transaction was committed or aborted before."""


class TransactionOpen(TransactionError):
    """This thread has an open write transaction on the same table: waiting would never end."""


class TransactionForgotten(TransactionError):
    """A write transaction was dropped without commit or abort."""


class ForeignTransaction(TransactionError):
    """The transaction is of another database, or older than the table."""


class QueryError(StateDBError):
    """A query cannot be answered."""


class NoParser(QueryError):
    """The index has no text parser."""


class BadKey(QueryError, ValueError):
    """The text or value is no key of the index."""


class NotSupported(QueryError):
    """The index cannot answer this kind of query."""


class DuplicateKey(StateDBError):
    """A unique index has the key for another object."""


class IteratorClosed(StateDBError):
    """The change iterator was closed."""


class RevisionGone(StateDBError, LookupError):
    """The revision is older than the history that the database keeps."""


class InstanceMismatch(StateDBError):
    """The revision belongs to another database instance."""


class InvariantBroken(StateDBError):
    """A check of STATEDB_VALIDATE=1 failed: a defect of this package."""


class OutsideError(StateDBError):
    """What people, scripts and remote clients ask for cannot be done."""


class UnknownColumn(OutsideError, LookupError):
    """The table prints no such column."""


class BadFormat(OutsideError):
    """An unknown output format, or columns chosen for one that has none."""


class UnreadableObject(OutsideError, ValueError):
    """Text that does not describe an object of the table's row type."""


class TableMismatch(OutsideError):
    """The table is not as the file says; the message holds the difference."""


class CommandFailed(OutsideError):
    """A `db` command did not find what it asserts, or was used wrongly."""


class RemoteError(OutsideError):
    """A remote query got no answer."""


class Unreachable(RemoteError):
    """Nobody listens on the socket: the program that holds the database is not running."""


class Refused(RemoteError):
    """The server answered with an error that has no class of its own here."""


class BrokenAnswer(RemoteError):
    """The answer ended early or is not what a database sends."""
