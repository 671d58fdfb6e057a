"""Found first on the path of the programs that tests start: it imposes Windows' rules on them as well."""

from tests.windows_semantics import files, system

files.impose()
system.impose()
