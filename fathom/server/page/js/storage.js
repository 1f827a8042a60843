// Conversations in IndexedDB, all inside this browser. Three stores:
//   conversations  whole conversations, by id
//   index          {id, title, updated, count}: what the list shows, read at start
//   inside         packed expert records of answers (inside_data.js), by message id; large, and the first to go when space is short
// Without IndexedDB (blocked, broken) the same interface works on Maps until the tab closes.

const STORES = ["conversations", "index", "inside"];

const wait = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const finished = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new DOMException("aborted", "AbortError"));
  });

const indexEntry = ({ id, title, updated, nodes }) => ({ id, title, updated, count: Object.keys(nodes).length });

export async function openStorage() {
  try {
    const request = indexedDB.open("fathom", 1);
    request.onupgradeneeded = () => {
      for (const store of STORES) request.result.createObjectStore(store, { keyPath: "id" });
    };
    return new BrowserStorage(await wait(request));
  } catch {
    return new MemoryStorage();
  }
}

class BrowserStorage {
  lasting = true;

  constructor(db) {
    this.db = db;
    db.onversionchange = () => db.close();
  }

  index() {
    return wait(this.db.transaction("index").objectStore("index").getAll());
  }

  get(id) {
    return wait(this.db.transaction("conversations").objectStore("conversations").get(id));
  }

  /** Whole or not at all: the conversation and its line in the index share a transaction. */
  async put(conversation) {
    const write = () => {
      const transaction = this.db.transaction(["conversations", "index"], "readwrite");
      transaction.objectStore("conversations").put(conversation);
      transaction.objectStore("index").put(indexEntry(conversation));
      return finished(transaction);
    };
    try {
      await write();
    } catch (error) {
      if (error?.name !== "QuotaExceededError") throw error;
      await this.clearInside(); // words are worth more than expert records
      await write();
    }
  }

  async remove(conversation) {
    const transaction = this.db.transaction(STORES, "readwrite");
    transaction.objectStore("conversations").delete(conversation.id);
    transaction.objectStore("index").delete(conversation.id);
    for (const id of Object.keys(conversation.nodes)) transaction.objectStore("inside").delete(id);
    await finished(transaction);
  }

  /** Calls visit(conversation) for each one, newest writes included, until it returns false. */
  scan(visit) {
    return new Promise((resolve, reject) => {
      const request = this.db.transaction("conversations").objectStore("conversations").openCursor();
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        const cursor = request.result;
        if (cursor && visit(cursor.value) !== false) cursor.continue();
        else resolve();
      };
    });
  }

  getInside(id) {
    return wait(this.db.transaction("inside").objectStore("inside").get(id));
  }

  async putInside(record) {
    const transaction = this.db.transaction("inside", "readwrite");
    transaction.objectStore("inside").put(record);
    await finished(transaction);
  }

  async removeInside(ids) {
    const transaction = this.db.transaction("inside", "readwrite");
    for (const id of ids) transaction.objectStore("inside").delete(id);
    await finished(transaction);
  }

  async clearInside() {
    const transaction = this.db.transaction("inside", "readwrite");
    transaction.objectStore("inside").clear();
    await finished(transaction);
  }
}

class MemoryStorage {
  lasting = false;
  conversations = new Map();
  inside = new Map();

  async index() {
    return [...this.conversations.values()].map(indexEntry);
  }

  async get(id) {
    return structuredClone(this.conversations.get(id));
  }

  async put(conversation) {
    this.conversations.set(conversation.id, structuredClone(conversation));
  }

  async remove(conversation) {
    this.conversations.delete(conversation.id);
    await this.removeInside(Object.keys(conversation.nodes));
  }

  async scan(visit) {
    for (const conversation of this.conversations.values()) if (visit(conversation) === false) return;
  }

  async getInside(id) {
    return this.inside.get(id);
  }

  async putInside(record) {
    this.inside.set(record.id, record);
  }

  async removeInside(ids) {
    for (const id of ids) this.inside.delete(id);
  }

  async clearInside() {
    this.inside.clear();
  }
}
