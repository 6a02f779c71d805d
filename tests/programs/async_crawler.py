"""An async actor follows links of a made-up web, many pages at a time; the driver watches it through a stream.

Prints:
pages: 121
deepest: 4
at most 10 at a time: True
first page: /
awaited: 121 pages, 121 distinct
"""

import asyncio

import ray

LIMIT = 10


def links_of(page):
    """Three pages below each, four levels deep."""
    depth = 0 if page == "/" else page.count("/")
    return [f"{page.rstrip('/')}/{name}" for name in "abc"] if depth < 4 else []


@ray.remote
class Fetcher:
    def __init__(self):
        self.running = self.most = 0

    async def fetch(self, page):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.005)
        self.running -= 1
        return page, links_of(page)

    async def most_at_once(self):
        return self.most


@ray.remote
class Crawler:
    def __init__(self, fetchers):
        self.fetchers = fetchers

    async def crawl(self, start):
        """Yields (page, depth) as they come in."""
        known, waiting = {start: 0}, {}
        self.follow(start, waiting)
        while waiting:
            ready, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in ready:
                del waiting[future]
                page, links = future.result()
                yield page, known[page]
                for link in links:
                    if link not in known:
                        known[link] = known[page] + 1
                        self.follow(link, waiting)

    def follow(self, page, waiting):
        fetcher = self.fetchers[len(page) % len(self.fetchers)]
        waiting[asyncio.ensure_future(self.fetched(fetcher, page))] = page

    async def fetched(self, fetcher, page):
        return await fetcher.fetch.remote(page)


ray.init(num_cpus=3)
fetchers = [Fetcher.options(max_concurrency=LIMIT).remote() for _ in range(2)]
crawler = Crawler.remote(fetchers)
found = [ray.get(ref) for ref in crawler.crawl.options(num_returns="streaming").remote("/")]
print("pages:", len(found))
print("deepest:", max(depth for _, depth in found))
most = ray.get([fetcher.most_at_once.remote() for fetcher in fetchers])
print("at most 10 at a time:", 1 < max(most) <= LIMIT)
print("first page:", found[0][0])


async def main():
    pages = []
    async for ref in crawler.crawl.options(num_returns="streaming").remote("/"):
        page, _ = await ref
        pages.append(page)
    return pages


pages = asyncio.run(main())
print("awaited:", len(pages), "pages,", len(set(pages)), "distinct")
