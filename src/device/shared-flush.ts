/**
 * One sync for many callers, shared only by those that arrived before it was issued.
 *
 * A sync covers the writes that had finished when it was issued. A caller that arrives while one runs may have
 * written after that, so it joins the next one, which is issued when the running one ends and serves everybody
 * who came meanwhile.
 *
 *     A arrives -> sync 1 issued ........ done -> A answered
 *          B, C arrive (join sync 2) ...... sync 2 issued ........ done -> B, C answered
 *
 * After a failed sync the kernel may report success for the next one although the pages that could not be
 * written were dropped. B and C above may have written before sync 1 was issued, so once a sync has failed all
 * that follow fail with the same reason, without being tried.
 */

export class SharedFlush {
  readonly #sync: () => Promise<void>;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  #failure: { readonly reason: unknown } | undefined;

  /** @param sync issues one sync; it must cover every write that had finished when it was called. */
  constructor(sync: () => Promise<void>) {
    this.#sync = sync;
  }

  /** Makes every write that had finished before this call durable. Rejects with what the sync failed with. */
  flush(): Promise<void> {
    if (this.#next !== undefined) return this.#next;
    if (this.#running === undefined) return this.#issue();
    this.#next = this.#afterRunning(this.#running);
    return this.#next;
  }

  async #afterRunning(running: Promise<void>): Promise<void> {
    try {
      await running;
    } catch {
      // Its own callers hear of it; `#issue` finds the failure.
    }
    this.#next = undefined;
    await this.#issue();
  }

  #issue(): Promise<void> {
    const running = this.#perform().finally(() => {
      this.#running = undefined;
    });
    this.#running = running;
    return running;
  }

  async #perform(): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure.reason;
    try {
      await this.#sync();
    } catch (error) {
      this.#failure = { reason: error };
      throw error;
    }
  }
}
