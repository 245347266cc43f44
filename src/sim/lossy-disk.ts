/**
 * A power cut for a directory tree: tests only.
 *
 * Durability cannot be seen by reading files back, because the page cache answers. This watches every sync of
 * the process (`base/sync.ts`) and remembers what a disk would be sure to hold:
 *
 * - **files**: an image of the file as it was when its last successful sync was issued, and images of the LMDB
 *   commits noted since, which may or may not have reached the disk;
 * - **directories**: their names as they were when their last successful fsync was issued.
 *
 * `powerCut` then turns the tree, in place, into a state that a cut at this moment could have left:
 *
 * - a file becomes its last synced image or, by the random numbers, one of the later commits. A file that was
 *   never synced becomes empty. With `tear`, a file without commits becomes a mixture, page by page, of its
 *   synced image and of what it holds now;
 * - names created, renamed or removed since the directory's last fsync are kept or undone, by the random
 *   numbers. All changes of names that concern the same file are kept or undone together, so a rename shows
 *   either its old or its new name; a name that is undone takes its never-synced file with it.
 *
 * A sync that fails gives up what it was to make durable: a later one that succeeds covers only what was written
 * after the failure.
 *
 * What is there when watching starts counts as durable, and so does what a cut has left: more cuts may follow.
 *
 * Directories keep their inodes. Files get fresh ones unless `keepInodes` is set: whoever still has one open, as
 * a killed process would not, writes and locks something that is in the tree no longer. LMDB's lock files
 * (`*-lock`) are never opened, since closing one would drop the locks that this process holds on it; a cut
 * removes them. Sockets and symbolic links stay as they are.
 *
 * Only this process's syncs are seen. Only one observer of syncs can be installed, so only one tree is watched.
 * Nothing may be in flight in the tree during a cut. A sync of a path that names nothing any more is not seen.
 */

import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  realpathSync,
  renameSync,
  rmSync,
  unlinkSync,
} from 'node:fs';
import { dirname, join, relative } from 'node:path';
import {
  type MaybePromise,
  observeSyncs,
  type SeededRandom,
  type SyncEvent,
  type SyncName,
} from '../base/index.ts';
import { type FileImages, type Images, ImageStore } from './images.ts';
import { chooseNames, type Entry, type Listing, scan, type Tree } from './names.ts';

export interface LossyDiskOptions {
  /** Commit images kept per file, the newest ones; 4 where left out. */
  readonly commitCountMax?: number;
  /** Which files may also keep any page written since their last sync; none where left out. */
  readonly tear?: (relativePath: string) => boolean;
  /**
   * Which LMDB files commit without syncing (`bulk` in `records/lmdb.ts`): of these too any page written since the
   * last sync may survive without the others.
   */
  readonly tearCommits?: (relativePath: string) => boolean;
  /** Files keep their inodes, and those whose content a cut leaves alone keep their times too. */
  readonly keepInodes?: boolean;
  /**
   * Called before each sync is issued, and after each sync and each noted commit. What it throws fails the sync, or
   * the call that committed; `skip` before a sync makes it a no-op. It may cut the power. A promise holds a sync for
   * as long as it takes: what is written until then is covered. A commit is not held.
   */
  readonly onEvent?: (event: SyncEvent, when: 'before' | 'after') => MaybePromise<'skip' | undefined>;
}

type Sync = Exclude<SyncEvent, { readonly kind: 'commit' }>;

/** What an issued sync makes durable if it succeeds. */
type Capture =
  | { readonly kind: 'file'; readonly images: FileImages; readonly image: string; readonly sequence: number }
  | {
      readonly kind: 'directory';
      readonly id: string;
      readonly listing: Listing;
      readonly sequence: number;
    };

interface DurableNames {
  readonly listing: Listing;
  readonly sequence: number;
}

export class LossyDisk {
  readonly #root: string;
  readonly #scratch: string;
  readonly #options: LossyDiskOptions;
  readonly #counts = new Map<SyncName, number>();
  readonly #disabled = new Set<SyncName>();
  readonly #failures = new Map<SyncName, string>();
  readonly #captures = new WeakMap<SyncEvent, Capture>();
  #images: Images;
  #names = new Map<string, DurableNames>();
  /** An open descriptor of each known directory, so that its inode number is not given to another. */
  readonly #directoryPins = new Map<string, number>();
  #sequence = 0;
  /** Syncs issued before the last cut make nothing durable any more. */
  #lastCut = 0;

  /** Starts watching: everything below `root` counts as durable. The root's parent must be writable. */
  constructor(root: string, options: LossyDiskOptions = {}) {
    this.#root = realpathSync(root);
    this.#options = options;
    // Beside the root, as images are linked and directories renamed, which works within one filesystem only.
    this.#scratch = mkdtempSync(join(dirname(this.#root), '.lossy-disk-'));
    this.#images = this.#baseline();
    observeSyncs({ before: (event) => this.#before(event), after: (event) => this.#after(event) });
  }

  /** How often each sync was asked for, the disabled and failed ones included. */
  get counts(): ReadonlyMap<SyncName, number> {
    return this.#counts;
  }

  /** Makes a sync a no-op that reports success. */
  disable(name: SyncName): void {
    this.#disabled.add(name);
  }

  enable(name: SyncName): void {
    this.#disabled.delete(name);
  }

  /** Makes the next sync of that name fail with an errno such as `EIO`. */
  failOnce(name: SyncName, errno: string): void {
    this.#failures.set(name, errno);
  }

  /** A range of a file is about to be written: what a failed sync gave up there is on its way to the disk again. */
  written(path: string, range: { readonly atBytes: number; readonly lengthBytes: number }): void {
    const inside = this.#inside(path);
    if (inside !== undefined) this.#images.ofPath(inside)?.written(range.atBytes, range.lengthBytes);
  }

  /** Stops watching and removes what was kept; the tree stays as it is. */
  close(): void {
    observeSyncs(undefined);
    this.#unpinDirectories();
    rmSync(this.#scratch, { recursive: true, force: true });
  }

  /**
   * Turns the tree into what a power cut could have left. The same state of the tree and the same random numbers
   * give the same result.
   *
   * @param options.keepInodes in place of the disk's own option.
   */
  powerCut(random: SeededRandom, options: { readonly keepInodes?: boolean } = {}): void {
    const tree = scan(this.#root);
    for (const directory of tree.values()) this.#pin(directory.path, directory.listing);
    const durable = new Map([...this.#names].map(([id, names]) => [id, names.listing]));
    const chosen = chooseNames(tree, durable, random);
    const parked = this.#takeApart(tree);
    const [rootId] = tree.keys();
    if (rootId !== undefined) this.#place(this.#root, rootId, chosen, parked, { random, ...options });
    this.#images = this.#baseline();
    this.#lastCut = this.#sequence;
  }

  /** Declares the tree durable as it is now and starts with fresh images. */
  #baseline(): Images {
    this.#unpinDirectories();
    rmSync(this.#scratch, { recursive: true, force: true });
    mkdirSync(this.#scratch, { recursive: true });
    this.#names = new Map();
    const images = new ImageStore(this.#scratch, this.#options.commitCountMax ?? 4);
    for (const [id, { path, listing }] of scan(this.#root)) {
      this.#names.set(id, { listing, sequence: 0 });
      this.#pinDirectory(id, path);
      for (const [name, entry] of listing) {
        if (entry.kind === 'file') images.of(entry.id, join(path, name)).setDurable(0);
      }
    }
    return images;
  }

  #before(event: SyncEvent): MaybePromise<'perform' | 'skip'> {
    if (event.kind === 'commit') return 'perform';
    this.#counts.set(event.name, (this.#counts.get(event.name) ?? 0) + 1);
    try {
      const verdict = this.#options.onEvent?.(event, 'before');
      if (verdict instanceof Promise) return this.#issueLater(event, verdict);
      return this.#issue(event, verdict);
    } catch (error) {
      this.#syncFailed(event);
      throw error;
    }
  }

  async #issueLater(event: Sync, verdict: Promise<'skip' | undefined>): Promise<'perform' | 'skip'> {
    try {
      return this.#issue(event, await verdict);
    } catch (error) {
      this.#syncFailed(event);
      throw error;
    }
  }

  #syncFailed(event: Sync): void {
    const path = this.#inside(event.path);
    if (event.kind === 'file' && path !== undefined) this.#images.ofPath(path)?.syncFailed();
  }

  #issue(event: Sync, verdict: 'skip' | undefined): 'perform' | 'skip' {
    if (verdict === 'skip') return 'skip';
    const errno = this.#failures.get(event.name);
    if (errno !== undefined) {
      this.#failures.delete(event.name);
      throw Object.assign(new Error(`${errno}: injected failure of sync ${event.name}, ${event.path}`), {
        code: errno,
      });
    }
    if (this.#disabled.has(event.name)) return 'skip';
    // Now, and not when it has finished: a sync is sure to cover only what was written before it was issued.
    const capture = this.#capture(event);
    if (capture !== undefined) this.#captures.set(event, capture);
    return 'perform';
  }

  #capture(event: Sync): Capture | undefined {
    const path = this.#inside(event.path);
    if (path === undefined) return undefined;
    this.#sequence += 1;
    const sequence = this.#sequence;
    if (event.kind === 'directory') {
      const [found] = scan(path, 1);
      if (found === undefined) return undefined;
      const [id, { listing }] = found;
      this.#pin(path, listing);
      this.#pinDirectory(id, path);
      return { kind: 'directory', id, listing, sequence };
    }
    const images = this.#images.ofPath(path);
    if (images === undefined) return undefined;
    return { kind: 'file', images, image: images.take(), sequence };
  }

  #after(event: SyncEvent): unknown {
    this.#remember(event);
    return this.#options.onEvent?.(event, 'after');
  }

  #remember(event: SyncEvent): void {
    if (event.kind === 'commit') {
      const path = this.#inside(event.path);
      this.#sequence += 1;
      if (path !== undefined) this.#images.ofPath(path)?.addCommit(this.#sequence);
      return;
    }
    const capture = this.#captures.get(event);
    if (capture === undefined || capture.sequence <= this.#lastCut) return;
    if (capture.kind === 'file') capture.images.promote(capture.image, capture.sequence);
    if (capture.kind !== 'directory') return;
    const known = this.#names.get(capture.id);
    if (known === undefined || known.sequence < capture.sequence) this.#names.set(capture.id, capture);
  }

  /** The real path where it lies in the watched tree and exists. */
  #inside(path: string): string | undefined {
    let real: string;
    try {
      real = realpathSync(path);
    } catch {
      return undefined;
    }
    return real === this.#root || real.startsWith(`${this.#root}/`) ? real : undefined;
  }

  /** Keeps the files of a listing from going away, so that their inode numbers stay theirs. */
  #pin(path: string, listing: Listing): void {
    for (const [name, entry] of listing) {
      if (entry.kind === 'file') this.#images.of(entry.id, join(path, name));
    }
  }

  #pinDirectory(id: string, path: string): void {
    if (!this.#directoryPins.has(id)) this.#directoryPins.set(id, openSync(path, 'r'));
  }

  #unpinDirectories(): void {
    for (const descriptor of this.#directoryPins.values()) closeSync(descriptor);
    this.#directoryPins.clear();
  }

  /** Removes all files and parks all directories but the root. @returns where each directory is, by id. */
  #takeApart(tree: Tree): Map<string, string> {
    const parked = new Map<string, string>();
    const shelf = join(this.#scratch, 'directories');
    mkdirSync(shelf);
    // The tree lists parents first; taken from its end, a directory has no directories left in it.
    for (const [id, { path, listing }] of [...tree].toReversed()) {
      for (const [name, entry] of listing) if (entry.kind !== 'directory') unlinkSync(join(path, name));
      if (path === this.#root) continue;
      const place = join(shelf, String(parked.size));
      renameSync(path, place);
      parked.set(id, place);
    }
    return parked;
  }

  #place(
    path: string,
    id: string,
    chosen: ReadonlyMap<string, Listing>,
    parked: Map<string, string>,
    cut: { readonly random: SeededRandom; readonly keepInodes?: boolean },
  ): void {
    for (const [name, entry] of chosen.get(id) ?? []) {
      const target = join(path, name);
      if (entry.kind === 'lock') continue;
      if (entry.kind === 'file') this.#placeFile(target, entry, cut);
      else {
        const place = parked.get(entry.id);
        parked.delete(entry.id);
        if (place === undefined) mkdirSync(target);
        else renameSync(place, target);
        this.#place(target, entry.id, chosen, parked, cut);
      }
    }
  }

  #placeFile(
    target: string,
    entry: Entry,
    { random, keepInodes }: { readonly random: SeededRandom; readonly keepInodes?: boolean },
  ): void {
    const name = relative(this.#root, target);
    this.#images.of(entry.id, target).restore(target, {
      random,
      tear: this.#options.tear?.(name) ?? false,
      tearCommits: this.#options.tearCommits?.(name) ?? false,
      keepInode: keepInodes ?? this.#options.keepInodes ?? false,
    });
  }
}
