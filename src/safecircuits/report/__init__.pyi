from .html import page as page
from .run_pages import run_page as run_page
from .saved import SavedRun as SavedRun
from .saved import open_runs as open_runs
