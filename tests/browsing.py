"A page opened in Chromium with the network off."


class Visit:
    "A page opened offline, and what it said and asked for."

    def __init__(self, browser, path, width=1280, height=900, before='', **context):
        self.context = browser.new_context(
            offline=True,
            viewport={'width': width, 'height': height},
            reduced_motion='reduce',
            **context,
        )
        if before:
            self.context.add_init_script(before)
        self.page, self.said, self.asked = self.context.new_page(), [], []
        self.page.on('console', lambda message: self.said.append(message.text))
        self.page.on('pageerror', lambda error: self.said.append(str(error)))
        self.page.on('request', lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.asked = [
            url for url in self.asked if url != path.as_uri() and not url.startswith('data:')
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def see(self, script):
        return self.page.evaluate(script)

    def shown(self, selector):
        return self.page.locator(selector).first.is_visible()
