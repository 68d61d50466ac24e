from .figures import save_figures as save_figures
from .html import write_report as write_report
