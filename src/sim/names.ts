/** The names in a tree of directories, and which of their changes a power cut keeps. Part of `lossy-disk.ts`. */

import { type Dirent, lstatSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { type SeededRandom, systemCode } from '../base/index.ts';

/** What a name stands for. `lock` is an LMDB lock file, which is never opened and does not survive. */
export interface Entry {
  readonly kind: 'file' | 'directory' | 'lock';
  /** Device and inode. */
  readonly id: string;
}

export type Listing = ReadonlyMap<string, Entry>;

/** Directories by id, parents before what is in them. */
export type Tree = ReadonlyMap<string, { readonly path: string; readonly listing: Listing }>;

/** Lists a directory and, down to `depth` levels, those in it. Sockets and symbolic links are left out. */
export function scan(path: string, depth = Number.POSITIVE_INFINITY): Tree {
  const tree = new Map<string, { path: string; listing: Listing }>();
  visit(path, depth, tree);
  return tree;
}

function visit(path: string, depth: number, tree: Map<string, { path: string; listing: Listing }>): void {
  const listing = new Map<string, Entry>();
  tree.set(idOf(path), { path, listing });
  const found = readdirSync(path, { withFileTypes: true });
  for (const dirent of found.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const kind = kindOf(dirent);
    if (kind === undefined) continue;
    const child = join(path, dirent.name);
    const id = idWhereThere(child);
    // It was removed, on the thread pool, since the directory was read.
    if (id === undefined) continue;
    listing.set(dirent.name, { kind, id });
    if (kind === 'directory' && depth > 1) visit(child, depth - 1, tree);
  }
}

function idWhereThere(path: string): string | undefined {
  try {
    return idOf(path);
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

function kindOf(dirent: Dirent): Entry['kind'] | undefined {
  if (dirent.isDirectory()) return 'directory';
  if (!dirent.isFile()) return undefined;
  return dirent.name.endsWith('-lock') ? 'lock' : 'file';
}

export function idOf(path: string): string {
  const stat = lstatSync(path);
  return `${stat.dev}:${stat.ino}`;
}

/**
 * Decides for every name that differs from the durable listing of its directory whether the old or the new state
 * survives. Changes that share a file form a group, which survives as a whole or not at all.
 *
 * @param durable listings by directory; a directory without one has no durable names.
 */
export function chooseNames(
  tree: Tree,
  durable: ReadonlyMap<string, Listing>,
  random: SeededRandom,
): Map<string, Listing> {
  const groups = new Groups();
  const empty: Listing = new Map();
  const directories = [...new Set([...tree.keys(), ...durable.keys()])];
  for (const id of directories) {
    const before = durable.get(id) ?? empty;
    const after = tree.get(id)?.listing ?? empty;
    for (const name of new Set([...before.keys(), ...after.keys()])) {
      const [old, now] = [before.get(name)?.id, after.get(name)?.id];
      if (old !== undefined && now !== undefined && old !== now) groups.join(old, now);
    }
  }
  const kept = new Map<string, boolean>();
  const survives = (entry: Entry): boolean => {
    const group = groups.find(entry.id);
    const choice = kept.get(group) ?? random.chance(0.5);
    kept.set(group, choice);
    return choice;
  };
  const chosen = new Map<string, Listing>();
  for (const id of directories) {
    const before = durable.get(id) ?? empty;
    const after = tree.get(id)?.listing ?? empty;
    const listing = new Map<string, Entry>();
    for (const name of new Set([...before.keys(), ...after.keys()])) {
      const [old, now] = [before.get(name), after.get(name)];
      const changed = old?.id === now?.id ? undefined : (now ?? old);
      const entry = changed === undefined || survives(changed) ? now : old;
      if (entry !== undefined) listing.set(name, entry);
    }
    chosen.set(id, listing);
  }
  return chosen;
}

/** Union-find over file ids. */
class Groups {
  readonly #parents = new Map<string, string>();

  find(id: string): string {
    let at = id;
    for (let parent = this.#parents.get(at); parent !== undefined; parent = this.#parents.get(at))
      at = parent;
    return at;
  }

  join(a: string, b: string): void {
    const [rootA, rootB] = [this.find(a), this.find(b)];
    if (rootA !== rootB) this.#parents.set(rootA, rootB);
  }
}
