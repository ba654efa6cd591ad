"""The report page: its figures, gallery and charts, and its html, js and css."""
