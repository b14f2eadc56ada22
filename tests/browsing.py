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


def barriers(page, *rules):
    "What axe finds that keeps somebody out: rule, how often, and where first."
    from axe_playwright_python.sync_playwright import Axe

    only = {'runOnly': list(rules)} if rules else {}
    # without preload: it would ask for a style sheet once more, which a disk does not grant
    options = {'resultTypes': ['violations'], 'preload': False, **only}
    found = Axe().run(page, options=options).response['violations']
    grave = [fault for fault in found if fault['impact'] in ('serious', 'critical')]
    return [(fault['id'], len(fault['nodes']), fault['nodes'][0]['target']) for fault in grave]
